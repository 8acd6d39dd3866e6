"""The commands `veridical study ...`: a preference study, from its design to a scale in JND."""
