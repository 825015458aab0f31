package jsonlog

import (
	"unicode"
	"unicode/utf8"
)

// maxText is the most bytes of a text that enter a record.
const maxText = 253

// appendText appends s as the inside of a JSON string. Control characters and
// the line breaks of Unicode are removed rather than escaped: a reader that
// undoes the escapes must not be given a second line either.
func appendText(dst []byte, s string) []byte {
	for _, r := range cut(s) {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case unicode.IsControl(r) || r == '\u2028' || r == '\u2029':
		default:
			dst = utf8.AppendRune(dst, r) // U+FFFD for what is not UTF-8
		}
	}
	return dst
}

// cut shortens s to maxText bytes or, not to split a character, a few less.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
