"""veridical: perceptual losses for image restoration, correct, fast, and compared on your own photographs."""

__version__ = "0.1.0"
