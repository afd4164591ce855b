"""What a recorded life takes on a card, and how fast it is: every answer is computed here."""
