"""Keys, values and deferral radii: pure geometry that knows no model."""
