"""A child process that runs a user's script on a card that is not there, and what it saw."""
