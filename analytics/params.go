package analytics

import (
	"strconv"
	"strings"
)

// Parameters reach ClickHouse as text that it reads by the parameter's type, in
// the escaped form of its tab-separated format.
var paramEscaper = strings.NewReplacer(`\`, `\\`, "\t", `\t`, "\n", `\n`, "\r", `\r`, "\x00", `\0`)

// elementEscaper writes one string of an array.
var elementEscaper = strings.NewReplacer(`\`, `\\`, `'`, `\'`)

// stringParam is the text of a String parameter.
func stringParam(s string) string { return paramEscaper.Replace(s) }

// stringsParam is the text of an Array(String) parameter.
func stringsParam(values []string) string {
	var b strings.Builder
	b.WriteByte('[')
	for i, v := range values {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('\'')
		b.WriteString(elementEscaper.Replace(v))
		b.WriteByte('\'')
	}
	b.WriteByte(']')
	return paramEscaper.Replace(b.String())
}

// intsParam is the text of an Array(Int64) parameter.
func intsParam(values []int64) string {
	b := make([]byte, 0, 20*len(values)+2)
	b = append(b, '[')
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, v, 10)
	}
	return string(append(b, ']'))
}

func intParam(v int64) string { return strconv.FormatInt(v, 10) }
