"""What everything else stands on: the image contract, colour, filters, patches, names. Nothing of this project above it."""
