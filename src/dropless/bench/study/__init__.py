"""`dropless study`: measurements of what a mixture of experts gains, kept as data, pictures and a
page. One file a part; `parts.PARTS` lists them."""
