package main

import (
	"errors"
	"strconv"
	"syscall"
	"unicode"
	"unicode/utf8"
)

// reason returns why err happened as the C library puts it, which is how
// PortSentry does: an error of the system with a capital, anything else as it is.
func reason(err error) string {
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		return err.Error()
	}
	text := errno.Error()
	first, size := utf8.DecodeRuneInString(text)
	return string(unicode.ToUpper(first)) + text[size:]
}

// errnoText returns the number and the reason of an error of the system.
func errnoText(err error) string {
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		return err.Error()
	}
	return strconv.Itoa(int(errno)) + ": " + reason(err)
}
