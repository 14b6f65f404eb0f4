"""Files and what is in them: schemas, records, hashes, atomic writes, provenance. Torch-free."""
