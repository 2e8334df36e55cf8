package chdb

import "strings"

// statement is what this package must know about a piece of SQL before the
// engine sees it. It is found by looking at tokens outside of strings, quoted
// names and comments; the engine's own parser decides everything else.
type statement struct {
	// verb is the first word in upper case, or "(".
	verb string
	// body is the SQL up to, not including, a closing FORMAT clause.
	body string
	// format is the name in that clause, or empty.
	format string
	// settings says that the statement ends in a SETTINGS clause (before FORMAT).
	settings bool
	// hostFile says that the bare word OUTFILE or INFILE occurs: clauses that the
	// engine's client library would execute itself with this process's rights.
	// A column of that name can still be quoted.
	hostFile bool
}

// token is one word, quoted name, string, number or punctuation sign.
type token struct {
	start, end int
	kind       tokenKind
}

type tokenKind uint8

const (
	tokenEnd tokenKind = iota
	tokenWord
	tokenQuoted // string, quoted name or heredoc
	tokenSign
)

// parseStatement scans sql once. It never fails: text that is no SQL is for the
// engine to refuse.
func parseStatement(sql string) statement {
	s := statement{body: sql}
	var previous [2]token // newest first
	word := func(t token) string { return sql[t.start:t.end] }
	is := func(t token, keyword string) bool {
		return t.kind == tokenWord && strings.EqualFold(word(t), keyword)
	}
	depth, formatAt, settingsAt := 0, token{}, token{}
	for pos := 0; ; {
		t := nextToken(sql, pos)
		if t.kind == tokenEnd {
			break
		}
		pos = t.end
		if s.verb == "" {
			s.verb = strings.ToUpper(word(t))
		}
		switch {
		case t.kind == tokenSign && strings.ContainsRune("([{", rune(sql[t.start])):
			depth++
		case t.kind == tokenSign && strings.ContainsRune(")]}", rune(sql[t.start])):
			depth--
		case is(t, "OUTFILE"), is(t, "INFILE"):
			s.hostFile = true
		case depth == 0 && is(t, "SETTINGS"):
			settingsAt = t
		case depth == 0 && t.kind == tokenSign && sql[t.start] == '=' && previous[1] == settingsAt && settingsAt.end > 0:
			s.settings = true
		case depth == 0 && t.kind == tokenWord && is(previous[0], "FORMAT"):
			formatAt, s.format = previous[0], word(t)
		case sql[t.start] != ';' && formatAt.end > 0:
			// Something follows "FORMAT x", so that was no closing clause.
			formatAt, s.format = token{}, ""
		}
		previous[1], previous[0] = previous[0], t
	}
	if s.format != "" {
		s.body = strings.TrimRight(sql[:formatAt.start], " \t\r\n")
	}
	return s
}

// reads reports whether the verb starts a statement whose result is worth
// streaming block by block.
func (s statement) reads() bool {
	switch s.verb {
	case "SELECT", "WITH", "(", "FROM":
		return true
	}
	return false
}

// nextToken finds the token at or after pos.
func nextToken(sql string, pos int) token {
	pos = skipBlank(sql, pos)
	if pos >= len(sql) {
		return token{start: len(sql), end: len(sql)}
	}
	switch c := sql[pos]; {
	case c == '\'' || c == '"' || c == '`':
		return token{pos, endOfQuoted(sql, pos), tokenQuoted}
	case c == '$':
		return heredoc(sql, pos)
	case isWordByte(c):
		end := pos + 1
		for end < len(sql) && (isWordByte(sql[end]) || sql[end] == '$') {
			end++
		}
		return token{pos, end, tokenWord}
	}
	return token{pos, pos + 1, tokenSign}
}

// skipBlank moves over white space and comments.
func skipBlank(sql string, pos int) int {
	for pos < len(sql) {
		rest := sql[pos:]
		switch {
		case strings.IndexByte(" \t\r\n\v\f\x00", rest[0]) >= 0:
			pos++
		case strings.HasPrefix(rest, "--"), strings.HasPrefix(rest, "#!"), strings.HasPrefix(rest, "# "):
			pos += lineLength(rest)
		case strings.HasPrefix(rest, "/*"):
			pos += blockCommentLength(rest)
		default:
			return pos
		}
	}
	return pos
}

func lineLength(s string) int {
	if i := strings.IndexByte(s, '\n'); i >= 0 {
		return i + 1
	}
	return len(s)
}

// blockCommentLength measures the comment that s starts with. An unclosed one
// reaches to the end.
func blockCommentLength(s string) int {
	if i := strings.Index(s[2:], "*/"); i >= 0 {
		return 2 + i + 2
	}
	return len(s)
}

// endOfQuoted is the position after the closing quote; ClickHouse escapes by a
// backslash and by doubling, in strings and in names.
func endOfQuoted(sql string, pos int) int {
	quote := sql[pos]
	for i := pos + 1; i < len(sql); i++ {
		switch sql[i] {
		case '\\':
			i++
		case quote:
			if i+1 < len(sql) && sql[i+1] == quote {
				i++
				continue
			}
			return i + 1
		}
	}
	return len(sql)
}

// heredoc is $tag$…$tag$; a lone dollar sign is a sign.
func heredoc(sql string, pos int) token {
	close := strings.IndexByte(sql[pos+1:], '$')
	if close < 0 {
		return token{pos, pos + 1, tokenSign}
	}
	tag := sql[pos : pos+1+close+1]
	for i := 1; i < len(tag)-1; i++ {
		if !isWordByte(tag[i]) {
			return token{pos, pos + 1, tokenSign}
		}
	}
	end := strings.Index(sql[pos+len(tag):], tag)
	if end < 0 {
		return token{pos, pos + 1, tokenSign}
	}
	return token{pos, pos + len(tag) + end + len(tag), tokenQuoted}
}

// isWordByte leaves bytes of other alphabets out: the engine takes some of them
// for white space, and no keyword may hide behind those.
func isWordByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// quoteString is s as a ClickHouse string literal.
func quoteString(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// quoteName is s as a quoted ClickHouse identifier.
func quoteName(s string) string {
	return "`" + strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(s) + "`"
}
