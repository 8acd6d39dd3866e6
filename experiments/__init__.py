"""Scripts that hold our runs beside the papers' tables. See README.md."""
