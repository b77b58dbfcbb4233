"""The console: one page, plain modules and styles, served by the ingress as they lie here."""
