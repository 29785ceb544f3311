"""What passes share: options, layers, calibration, ranges, placement and weight formats. No pass lives here."""
