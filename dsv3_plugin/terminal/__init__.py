"""What people see: lines and tables that show names and never obey them."""
