package main

import (
	"slices"
	"testing"

	"github.com/portsnare/portsnare/parsers/conf"
)

func TestSniffConfig(t *testing.T) {
	tests := map[string]struct {
		interfaces    []string
		names         []string
		skipLoopbacks bool
	}{
		"all":              {interfaces: []string{"all"}},
		"all but loopback": {interfaces: []string{"all-but-loopback"}, skipLoopbacks: true},
		"names":            {interfaces: []string{"eth0", "lo"}, names: []string{"eth0", "lo"}},
		"all and a name":   {interfaces: []string{"eth0", "all"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := sniffConfig(conf.Config{Interfaces: test.interfaces}, nil)
			if !slices.Equal(got.Names, test.names) || got.SkipLoopbacks != test.skipLoopbacks {
				t.Errorf("interfaces %q: names %q, skip loopbacks %v; want %q, %v",
					test.interfaces, got.Names, got.SkipLoopbacks, test.names, test.skipLoopbacks)
			}
		})
	}
}
