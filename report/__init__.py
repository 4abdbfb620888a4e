"""Reports for people: one page of HTML that stands by itself, of one test or of several beside each other."""
