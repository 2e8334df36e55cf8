package analytics

import (
	"encoding/hex"
	"strconv"
	"strings"
)

// What a user wrote travels as hexadecimal digits, in capitals as ClickHouse's
// hex writes them. Servers differ in how often they take a parameter's escapes off (an
// array's once or twice), and digits mean the same however it is read.

// stringParam is the text of a String parameter that the statement decodes.
func stringParam(s string) string { return strings.ToUpper(hex.EncodeToString([]byte(s))) }

// stringsParam is the text of an Array(String) parameter that the statement
// compares with hex(column).
func stringsParam(values []string) string {
	digits := make([]string, len(values))
	for i, v := range values {
		digits[i] = "'" + stringParam(v) + "'"
	}
	return "[" + strings.Join(digits, ",") + "]"
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
