"""Number formats and their arithmetic."""
