"""What builders read from: installed packages, NQ, web texts, passages."""
