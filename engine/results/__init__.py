"""What runs store: result rows, the journal that resumes a run, and files that are written atomically."""
