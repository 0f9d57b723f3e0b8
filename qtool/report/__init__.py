"""Hold the report of a run as data (``report``, ``schema``) and render it (``render``)."""
