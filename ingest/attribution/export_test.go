package attribution

// HeaderNames lists the headers of the table, a line each.
func HeaderNames() (lines string) {
	for _, r := range table.rules {
		lines += r.header + "\n"
	}
	return lines
}
