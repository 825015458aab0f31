package main

import (
	"testing"

	"github.com/spf13/cobra"

	"github.com/portsnare/portsnare/internal/mantest"
)

func TestManualPage(t *testing.T) {
	const page = "../../packaging/deb/man/portsnare.1"
	mantest.Lint(t, page)

	root := newRoot()
	var commands, flags []string
	var collect func(*cobra.Command)
	collect = func(c *cobra.Command) {
		c.InitDefaultHelpFlag()
		c.InitDefaultVersionFlag()
		flags = append(flags, mantest.Flags(c.Flags())...)
		for _, sub := range c.Commands() {
			commands = append(commands, sub.Name())
			collect(sub)
		}
	}
	collect(root)
	mantest.Explains(t, page, "Cm", commands)
	mantest.Explains(t, page, "Fl", flags)
}
