"""Statistics: correlations, intervals and averages by token role, as functions of tables and arrays."""
