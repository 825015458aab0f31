package capture

import (
	"slices"
	"strings"

	"github.com/portsnare/portsnare/detector"
)

// An interfaceRule says which interfaces are wanted, in the terms of
// [SniffConfig].
type interfaceRule struct {
	names         []string // empty: all
	skipLoopbacks bool
}

// String says what was asked for: `"eth0", "eth1"` or "all but loopback".
func (r interfaceRule) String() string {
	asked := "all"
	if r.named() {
		asked = `"` + strings.Join(r.names, `", "`) + `"`
	}
	if r.skipLoopbacks {
		asked += " but loopback"
	}
	return asked
}

func (r interfaceRule) named() bool { return len(r.names) > 0 }

func (r interfaceRule) wants(l link) bool {
	switch {
	case r.skipLoopbacks && l.loopback:
		return false
	case r.named():
		return slices.Contains(r.names, l.name)
	}
	return !l.member
}

// wanted returns the names of the wanted interfaces that are up.
func (r interfaceRule) wanted(v *hostView) []string {
	var names []string
	for _, l := range v.inOrder() {
		if l.up && r.wants(l) {
			names = append(names, l.name)
		}
	}
	return names
}

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

// A watch is all that a packet is checked against, in the kernel or here. It is
// immutable.
type watch struct {
	rule       interfaceRule
	view       *hostView
	tcp, udp   detector.PortSet
	broadcasts bool // whether datagrams to many hosts are probes
}

// firstUserPort is where the ports begin that programs get, or choose, to send
// requests from: 32768 unless asked otherwise, any from here on by name servers
// and NAT.
const firstUserPort = 1024

// seesRequests reports whether the host may send requests from trap ports. To
// see those, the kernel makes a copy of every outgoing packet, so not every
// host should.
func (w *watch) seesRequests() bool {
	ranges := w.udp.Ranges()
	return len(ranges) > 0 && ranges[len(ranges)-1].Last >= firstUserPort
}

// takes reports whether a probe on l is for this host.
func (w *watch) takes(p *detector.Probe, l link) bool {
	addr := p.Target.Addr()
	return w.view.isLocal(addr, l) ||
		w.broadcasts && p.Proto == detector.UDP && w.view.receivesAsOneOfMany(addr)
}

// filter returns the kernel's part of the checks.
func (w *watch) filter() filter {
	f := filter{
		tcp: w.tcp, udp: w.udp,
		requests: w.seesRequests(), broadcasts: w.broadcasts,
		skipLoopbacks: w.rule.skipLoopbacks,
	}
	if w.rule.named() {
		f.only = []uint32{} // not nil: that would be all
	}
	for index, l := range w.view.links {
		switch {
		case w.rule.named() && w.rule.wants(l):
			f.only = append(f.only, uint32(index))
		case !w.rule.named() && l.member:
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
		return l, !w.rule.named()
	}
	return l, w.rule.wants(l)
}
