"""Range estimators, one file a method; the table of them is CALIBRATORS of the room above."""
