package capture

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestInterfaceRule(t *testing.T) {
	view := newHostView()
	view.links[1] = link{name: "lo", up: true, loopback: true}
	view.links[2] = link{name: "eth0", up: true, member: true}
	view.links[3] = link{name: "br0", up: true}
	view.links[4] = link{name: "wg0"}
	tests := map[string]struct {
		rule    interfaceRule
		text    string
		wanted  []string // of those that are up
		missing []string
		unknown bool // whether an interface that has just appeared is wanted
	}{
		"all":           {interfaceRule{}, `all`, []string{"lo", "br0"}, nil, true},
		"no loopback":   {interfaceRule{skipLoopbacks: true}, `all but loopback`, []string{"br0"}, nil, true},
		"named":         {interfaceRule{names: []string{"eth0", "wg0"}}, `"eth0", "wg0"`, []string{"eth0"}, nil, false},
		"named, absent": {interfaceRule{names: []string{"eth1", "br0"}}, `"eth1", "br0"`, []string{"br0"}, []string{"eth1"}, false},
		"both": {
			interfaceRule{names: []string{"lo", "br0"}, skipLoopbacks: true}, `"lo", "br0" but loopback`, []string{"br0"}, nil, false,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			rule := tt.rule
			if got := rule.String(); got != tt.text {
				t.Errorf("it says %s, want %s", got, tt.text)
			}
			if diff := cmp.Diff(tt.wanted, rule.wanted(view)); diff != "" {
				t.Errorf("wanted (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.missing, rule.missing(view)); diff != "" {
				t.Errorf("missing (-want +got):\n%s", diff)
			}
			w := watch{rule: rule, view: view}
			if _, got := w.link(99); got != tt.unknown {
				t.Errorf("a new interface is wanted: %v, want %v", got, tt.unknown)
			}
		})
	}
}
