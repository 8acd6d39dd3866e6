"""What everything else stands on: the image contract, colour, filters, patches, files, names."""
