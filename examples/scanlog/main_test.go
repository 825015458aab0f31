package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

func TestDeliver(t *testing.T) {
	dir := t.TempDir()
	s := &scanlog{}
	if err := s.Configure(t.Context(), outputapi.Configuration{StateDir: dir}); err != nil {
		t.Fatal(err)
	}
	probe := detector.Probe{
		Source: netip.MustParseAddrPort("203.0.113.7:40000"),
		Target: netip.MustParseAddrPort("192.0.2.1:23"),
	}
	events := []detector.Event{
		{Sequence: 1, Action: detector.DaemonStarted},
		{Sequence: 2, Probe: probe, Triggered: detector.False},
		{Sequence: 3, Probe: probe, Triggered: detector.True},
	}
	if err := s.Deliver(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "scans.log"))
	if want := "3 203.0.113.7 192.0.2.1:23\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	s.path = dir
	if err := s.Deliver(t.Context(), events); err == nil {
		t.Error("no error when the file cannot be written")
	}
}

// TestDocumentation checks that docs/modules.md shows this program.
func TestDocumentation(t *testing.T) {
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/modules.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), "```go\n"+string(program)+"```\n") {
		t.Error("docs/modules.md shows another program than main.go")
	}
}
