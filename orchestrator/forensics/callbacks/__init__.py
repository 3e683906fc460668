"""Readings beside a training of your own: callbacks for `transformers` (`trainer`) and for Lightning (`lightning`)."""
