"""The page about a run, report.html: `page.page` makes it of sections, which stand in the other files."""
