"""The commands that a person types: their arguments, printing and exit statuses."""
