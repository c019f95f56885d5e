"""The commands a person types: arguments, printing and exit status."""
