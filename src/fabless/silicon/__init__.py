"""From a description to area, yield inputs, energy and power."""
