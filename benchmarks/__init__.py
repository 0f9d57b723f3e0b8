"""One command per table. Every table names the machine and the versions; nothing here is a test."""
