"""What do bad data do to a language model, and which of its parameters must not be touched?"""
