package main

import (
	"testing"

	"github.com/portsnare/portsnare/internal/mantest"
)

func TestManualPage(t *testing.T) {
	const page = "../../packaging/deb/man/portsnared.8"
	mantest.Lint(t, page)
	mantest.Explains(t, page, "Fl", mantest.Flags(newFlags(new(options))))
}
