package outputv1

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxMessage is the most bytes of a message, in either direction.
const MaxMessage = 1 << 20

// The most bytes of a text, as output.proto says for each field.
const (
	maxName = 64
	maxZone = 15 // of an interface's name in Linux
	maxHost = 255
	maxText = 1024
	maxAct  = 4096
)

// maxActs is the most acts of one result or event.
const maxActs = 8

// Text returns at most limit bytes of s, as valid UTF-8 without what could end a
// line or steer a terminal. It is for texts that travel, on both sides.
func Text(s string, limit int) string {
	if strings.ContainsFunc(s, unprintable) {
		s = strings.Map(printable, s)
	}
	return cut(s, limit)
}

// unprintable also finds bytes that are not UTF-8, and U+FFFD itself, which
// costs a copy and changes nothing.
func unprintable(r rune) bool { return r == utf8.RuneError || printable(r) < 0 }

// printable returns r, or -1 if it is to be left out.
func printable(r rune) rune {
	if r != '\t' && unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
		return -1
	}
	return r
}

// cut shortens s to limit bytes or, not to split a character, a few less.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}

// ErrorText returns the text that travels for an error: empty only for nil.
func ErrorText(err error) string {
	if err == nil {
		return ""
	}
	if s := Text(err.Error(), maxText); s != "" {
		return s
	}
	return "unknown error"
}

// ToError returns the error that the other side told of, nil if s is empty.
func ToError(s string) error {
	if s == "" {
		return nil
	}
	return errors.New(ErrorText(errors.New(s)))
}
