"""From records to cells, tables and figures."""
