package cmdline

import (
	"fmt"
	"strings"
)

// An option is one that a command line may name.
type option struct {
	long     string // without the dashes; empty when it has no long form
	short    byte   // 0 when it has no short form
	hasValue bool
	set      func(c *PortSentry2, value string) error // nil: known to getopt only
}

// A scanner takes a command line apart as glibc's getopt_long does: short
// options may be bundled and carry their value, long ones may be cut short,
// and what is no option may stand anywhere. Its messages are glibc's.
//
// The flag libraries for Go know no options cut short and have messages of
// their own, but scripts that start PortSentry rely on the one and read the
// other.
type scanner struct {
	program string
	options []option
	args    []string // not looked at yet
	bundle  string   // short options left over from the last argument
}

// next returns the next option with its value, or nil after the last.
func (s *scanner) next() (*option, string, error) {
	if s.bundle != "" {
		return s.short()
	}
	for len(s.args) > 0 {
		arg := s.args[0]
		s.args = s.args[1:]
		switch {
		case arg == "--":
			s.args = nil
		case strings.HasPrefix(arg, "--"):
			return s.long(arg)
		case len(arg) > 1 && arg[0] == '-':
			s.bundle = arg[1:]
			return s.short()
		}
	}
	return nil, "", nil
}

// short takes the first option of the bundle.
func (s *scanner) short() (*option, string, error) {
	letter := s.bundle[:1]
	s.bundle = s.bundle[1:]
	o := s.byLetter(letter[0])
	switch {
	case o == nil:
		return nil, "", s.fault("invalid option -- '%s'", letter)
	case !o.hasValue:
		return o, "", nil
	case s.bundle != "":
		value := s.bundle
		s.bundle = ""
		return o, value, nil
	}
	value, found := s.value()
	if !found {
		return nil, "", s.fault("option requires an argument -- '%s'", letter)
	}
	return o, value, nil
}

// long takes the option of an argument that starts with two dashes.
func (s *scanner) long(arg string) (*option, string, error) {
	name, value, attached := strings.Cut(arg[len("--"):], "=")
	found := s.byName(name)
	switch {
	case len(found) == 0:
		return nil, "", s.fault("unrecognized option '%s'", arg)
	case len(found) > 1:
		return nil, "", s.fault("option '%s' is ambiguous; possibilities:%s", arg, quoteNames(found))
	}
	o := found[0]
	switch {
	case attached && !o.hasValue:
		return nil, "", s.fault("option '--%s' doesn't allow an argument", o.long)
	case attached || !o.hasValue:
		return o, value, nil
	}
	if value, attached = s.value(); !attached {
		return nil, "", s.fault("option '--%s' requires an argument", o.long)
	}
	return o, value, nil
}

// value takes the whole next argument, even if it looks like an option.
func (s *scanner) value() (string, bool) {
	if len(s.args) == 0 {
		return "", false
	}
	value := s.args[0]
	s.args = s.args[1:]
	return value, true
}

func (s *scanner) byLetter(letter byte) *option {
	for i := range s.options {
		if s.options[i].short == letter {
			return &s.options[i]
		}
	}
	return nil
}

// byName returns the option of that name, or else all whose names start with
// it.
func (s *scanner) byName(name string) []*option {
	var found []*option
	for i := range s.options {
		switch o := &s.options[i]; {
		case o.long == "":
		case o.long == name:
			return []*option{o}
		case strings.HasPrefix(o.long, name):
			found = append(found, o)
		}
	}
	return found
}

func quoteNames(options []*option) string {
	var b strings.Builder
	for _, o := range options {
		fmt.Fprintf(&b, " '--%s'", o.long)
	}
	return b.String()
}

// fault returns getopt's message, and what PortSentry makes of it.
func (s *scanner) fault(format string, args ...any) error {
	return &Error{
		Stderr: s.program + ": " + fmt.Sprintf(format, args...),
		Stdout: unknownArgument('?'),
	}
}
