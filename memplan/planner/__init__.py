"""The settings that train fastest within a card's memory."""
