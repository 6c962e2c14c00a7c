"""One script per figure the README claims: run each from the project's root as `python -m bench.<name>`."""
