package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/portsnare/portsnare/internal/mantest"
	"github.com/portsnare/portsnare/parsers/cmdline"
)

func TestManualPage(t *testing.T) {
	const page = "../../packaging/deb/man/portsnared.8"
	mantest.Lint(t, page)
	mantest.Explains(t, page, "Fl", mantest.Flags(newFlags(new(options))))
}

func TestManualPageOfPortSentry(t *testing.T) {
	const page = "../../packaging/deb/man/portsentry.8"
	mantest.Lint(t, page)
	mantest.Explains(t, page, "Fl", usageFlags(cmdline.Usage(portSentry)))
}

// usageFlags returns the options that a usage lists, as [mantest.Explains] takes
// them. An option begins a line there, and two blanks end it.
func usageFlags(usage string) []string {
	option := regexp.MustCompile(`(?:^|, )-(-?[A-Za-z-]+)`)
	var flags []string
	for line := range strings.Lines(usage) {
		line, _, _ = strings.Cut(strings.TrimLeft(line, " "), "  ")
		for _, match := range option.FindAllStringSubmatch(line, -1) {
			flags = append(flags, match[1])
		}
	}
	return flags
}
