package capture

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
)

// An interfaceRule says which interfaces are wanted.
type interfaceRule struct {
	names         []string // nil: by kind
	skipLoopbacks bool
}

func newInterfaceRule(interfaces []string) (interfaceRule, error) {
	switch {
	case len(interfaces) == 0 || slices.Equal(interfaces, []string{AllInterfaces}):
		return interfaceRule{}, nil
	case slices.Equal(interfaces, []string{AllButLoopback}):
		return interfaceRule{skipLoopbacks: true}, nil
	}
	for _, name := range interfaces {
		if name == AllInterfaces || name == AllButLoopback {
			return interfaceRule{}, fmt.Errorf("interfaces %q: %q stands alone, without names", interfaces, name)
		}
		if name == "" || len(name) >= unix.IFNAMSIZ {
			return interfaceRule{}, fmt.Errorf("interface %q: a name has 1 to %d bytes", name, unix.IFNAMSIZ-1)
		}
	}
	return interfaceRule{names: interfaces}, nil
}

// String returns the rule as it was asked for.
func (r interfaceRule) String() string {
	switch {
	case r.names != nil:
		return `"` + strings.Join(r.names, `", "`) + `"`
	case r.skipLoopbacks:
		return `"` + AllButLoopback + `"`
	}
	return `"` + AllInterfaces + `"`
}

func (r interfaceRule) wants(l link) bool {
	if r.names != nil {
		return slices.Contains(r.names, l.name)
	}
	return !l.member && !(r.skipLoopbacks && l.loopback)
}

// wanted returns the names of the wanted interfaces that are up.
func (r interfaceRule) wanted(v *hostView) []string {
	var names []string
	for _, l := range v.links {
		if l.up && r.wants(l) {
			names = append(names, l.name)
		}
	}
	return names
}

func (r interfaceRule) usable(v *hostView) bool { return len(r.wanted(v)) > 0 }

// missing returns the names asked for that no interface has.
func (r interfaceRule) missing(v *hostView) []string {
	var names []string
	for _, name := range r.names {
		there := false
		for _, l := range v.links {
			there = there || l.name == name
		}
		if !there {
			names = append(names, name)
		}
	}
	return names
}

// A watch is all that a packet is checked against. It is immutable.
type watch struct {
	rule     interfaceRule
	view     *hostView
	tcp, udp detector.PortSet
}

// filter returns the kernel's part of the checks.
func (w *watch) filter() filter {
	f := filter{tcp: w.tcp, udp: w.udp, skipLoopbacks: w.rule.skipLoopbacks}
	if w.rule.names != nil {
		f.only = []uint32{} // not nil: that would be all
	}
	for index, l := range w.view.links {
		switch {
		case w.rule.names != nil && w.rule.wants(l):
			f.only = append(f.only, uint32(index))
		case w.rule.names == nil && l.member:
			f.except = append(f.except, uint32(index))
		}
	}
	return f
}

// link returns the interface with an index, and whether it is wanted. An
// interface that has just appeared is not known yet; unless names are asked
// for, it is wanted.
func (w *watch) link(index int) (link, bool) {
	l, known := w.view.links[index]
	if !known {
		return l, w.rule.names == nil
	}
	return l, w.rule.wants(l)
}

func (w *watch) watches(p *detector.Probe) bool {
	if p.Proto == detector.TCP {
		return w.tcp.Contains(p.Target.Port())
	}
	return w.udp.Contains(p.Target.Port())
}
