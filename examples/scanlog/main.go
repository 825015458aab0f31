// Scanlog is an output module: it appends a line to a file for each scan.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

type scanlog struct{ path string }

func (s *scanlog) Info() outputapi.Info {
	return outputapi.Info{Name: "scanlog", Version: "1.0.0", Summary: "appends a line to a file for each scan"}
}

func (s *scanlog) Configure(_ context.Context, c outputapi.Configuration) error {
	s.path = filepath.Join(c.StateDir, "scans.log")
	return c.Decode(&struct{}{}) // there is nothing to set
}

func (s *scanlog) Deliver(_ context.Context, events []detector.Event) error {
	var lines []byte
	for _, ev := range events {
		if ev.IsProbe() && ev.Triggered == detector.True {
			lines = fmt.Appendf(lines, "%d %v %v\n", ev.Sequence, ev.Probe.Source.Addr(), ev.Probe.Target)
		}
	}
	file, err := os.OpenFile(s.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err // all events come again
	}
	_, err = file.Write(lines)
	return errors.Join(err, file.Close())
}

func main() { outputapi.Serve(&scanlog{}) }
