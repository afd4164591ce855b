"""The GPU battery: what memplan says about a card, held against the card."""
