package detector

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var at = time.Date(2026, 11, 22, 7, 44, 33, 659_000_000, time.UTC)

func probe(source, target string) Probe {
	return Probe{
		At: at, Source: netip.MustParseAddrPort(source), Target: netip.MustParseAddrPort(target),
		Proto: TCP, Technique: TechniqueSYN, Header: HeaderFacts{Flags: SYN}, IPOptions: False,
	}
}

// trapped is a probe that a trap accepted.
func trapped(source, target string) Probe {
	p := probe(source, target)
	p.Technique, p.Header, p.IPOptions, p.Proof = TechniqueConnect, HeaderFacts{}, Unset, ProofHandshake
	return p
}

func trapPolicy() Policy {
	return Policy{
		TCPPorts: NewPortSet(PortRange{11, 11}),
		UDPPorts: NewPortSet(PortRange{7, 7}),
	}
}

// outcome is a decision in one line: PortSentry's four flags, or silence.
func outcome(d Decision) string {
	if !d.Report {
		return "silent"
	}
	ev := d.Event
	s := fmt.Sprintf("ignored %v, triggered %v, noblock %v, blocked %v", ev.Ignored, ev.Triggered, ev.NoBlock, ev.Blocked)
	if d.Ban != nil {
		s += fmt.Sprintf(", ban %v", d.Ban.Source)
	}
	return s
}

func TestObserveInPortSentrysOrder(t *testing.T) {
	const (
		logOnly = "ignored false, triggered true, noblock true, blocked false"
		ignored = "ignored true, triggered unset, noblock unset, blocked unset"
		below   = "ignored false, triggered false, noblock unset, blocked unset"
		local   = "ignored true, triggered true, noblock true, blocked false"
		banned  = "ignored false, triggered true, noblock false, blocked false, ban 192.0.2.1/32"
	)
	inUse := func(proto Proto, target netip.AddrPort) bool {
		return proto == TCP && target == netip.MustParseAddrPort("198.51.100.1:11")
	}
	everyone := NewPrefixSet(netip.MustParsePrefix("0.0.0.0/0"))
	tests := map[string]struct {
		policy func(*Policy)
		probe  Probe
		want   string
	}{
		"listed port":        {probe: probe("192.0.2.1:40000", "198.51.100.1:11"), want: logOnly},
		"unlisted port":      {probe: probe("192.0.2.1:40000", "198.51.100.1:12"), want: "silent"},
		"port of UDP only":   {probe: probe("192.0.2.1:40000", "198.51.100.1:7"), want: "silent"},
		"service":            {func(p *Policy) { p.InUse = inUse }, probe("192.0.2.1:40000", "198.51.100.1:11"), "silent"},
		"service elsewhere":  {func(p *Policy) { p.InUse = inUse }, probe("192.0.2.1:40000", "198.51.100.2:11"), logOnly},
		"ignored":            {func(p *Policy) { p.Ignore = everyone }, probe("192.0.2.1:40000", "198.51.100.1:11"), ignored},
		"below the trigger":  {func(p *Policy) { p.Trigger = 2 }, probe("192.0.2.1:40000", "198.51.100.1:11"), below},
		"own address":        {probe: probe("198.51.100.1:40000", "198.51.100.1:11"), want: local},
		"own address, asked": {func(p *Policy) { p.SkipLocalCheck = true }, probe("198.51.100.1:40000", "198.51.100.1:11"), logOnly},
		"ban":                {func(p *Policy) { p.BanTCP = true }, probe("192.0.2.1:40000", "198.51.100.1:11"), banned},
		"ban of UDP only":    {func(p *Policy) { p.BanUDP = true }, probe("192.0.2.1:40000", "198.51.100.1:11"), logOnly},

		"trap":                   {func(p *Policy) { p.InUse = inUse }, trapped("192.0.2.1:40000", "198.51.100.1:11"), logOnly},
		"trap on another port":   {probe: trapped("192.0.2.1:40000", "198.51.100.1:12"), want: logOnly},
		"trap, ignored":          {func(p *Policy) { p.Ignore = everyone }, trapped("192.0.2.1:40000", "198.51.100.1:11"), ignored},
		"trap, below trigger":    {func(p *Policy) { p.Trigger = 2 }, trapped("192.0.2.1:40000", "198.51.100.1:11"), below},
		"trap, from own address": {func(p *Policy) { p.BanTCP = true }, trapped("198.51.100.1:40000", "198.51.100.1:11"), local},
		"trap, ban":              {func(p *Policy) { p.BanTCP = true }, trapped("192.0.2.1:40000", "198.51.100.1:11"), banned},

		"a service comes before the ignore list": {
			func(p *Policy) { p.InUse, p.Ignore = inUse, everyone }, probe("192.0.2.1:40000", "198.51.100.1:11"), "silent",
		},
		"the ignore list comes before the trigger": {
			func(p *Policy) { p.Ignore, p.Trigger = everyone, 9 }, probe("192.0.2.1:40000", "198.51.100.1:11"), ignored,
		},
		"the trigger comes before the own address": {
			func(p *Policy) { p.Trigger = 2 }, probe("198.51.100.1:40000", "198.51.100.1:11"), below,
		},
		"an own address is never banned": {
			func(p *Policy) { p.BanTCP = true }, probe("198.51.100.1:40000", "198.51.100.1:11"), local,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			policy := trapPolicy()
			if test.policy != nil {
				test.policy(&policy)
			}
			if got := outcome(New(policy).Observe(test.probe)); got != test.want {
				t.Errorf("Observe(%v -> %v) = %s, want %s", test.probe.Source, test.probe.Target, got, test.want)
			}
		})
	}
}

func TestEventCarriesTheProbe(t *testing.T) {
	e := New(trapPolicy())
	silent, reported := probe("192.0.2.1:40000", "198.51.100.1:12"), probe("192.0.2.1:40000", "198.51.100.1:11")
	for range 3 {
		e.Observe(silent)
		ev := e.Observe(reported).Event
		if ev.Probe != reported || ev.At != at || ev.Action != ScanDetected {
			t.Errorf("event = %+v", ev)
		}
	}
	want := Stats{Probes: 6, Reported: 3, Unwatched: 3}
	if diff := cmp.Diff(want, e.Stats()); diff != "" {
		t.Errorf("stats: (-want +got)\n%s", diff)
	}
}

// PortSentry 2.0.7 counts packets over both protocols, and from the Nth on
// every one triggers.
func TestTriggerCountsPacketsOfBothProtocols(t *testing.T) {
	for trigger, want := range map[int][]Tri{
		0: {True, True, True, True},
		1: {True, True, True, True},
		2: {False, True, True, True},
		4: {False, False, False, True},
	} {
		policy := trapPolicy()
		policy.Trigger = trigger
		e := New(policy)
		var got []Tri
		for i := range 4 {
			p := probe("192.0.2.1:40000", "198.51.100.1:11")
			if i%2 == 1 {
				p = probe("192.0.2.1:40000", "198.51.100.1:7")
				p.Proto, p.Technique = UDP, TechniqueUDP
			}
			got = append(got, e.Observe(p).Event.Triggered)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("trigger %d: (-want +got)\n%s", trigger, diff)
		}
	}
}

// Fifty forged sources between two probes defeat PortSentry 1.2's trigger.
// Here a source that keeps coming back keeps its count through a flood, and one
// that begins after a flood is counted as ever.
func TestTriggerSurvivesAFloodOfForgedSources(t *testing.T) {
	for _, repeats := range []int{1, 2} {
		t.Run(fmt.Sprintf("each %d times", repeats), func(t *testing.T) {
			policy := trapPolicy()
			policy.Trigger, policy.MaxSources = 4, 100
			e := New(policy)
			now := at
			send := func(source netip.Addr) Tri {
				p := probe("192.0.2.1:40000", "198.51.100.1:11")
				p.Source, p.At = netip.AddrPortFrom(source, 40000), now
				now = now.Add(time.Millisecond)
				return e.Observe(p).Event.Triggered
			}
			steady, late := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
			for range 3 {
				send(steady)
			}
			for n := range 10_000 {
				for range repeats {
					send(netip.AddrFrom4([4]byte{203, 0, byte(n >> 8), byte(n)}))
				}
			}
			if got := send(steady); got != True {
				t.Errorf("fourth probe of a steady source after a flood: triggered %v, want true", got)
			}
			var got Tri
			for range 4 {
				got = send(late)
			}
			if got != True {
				t.Errorf("fourth probe of a source that began after a flood: triggered %v, want true", got)
			}
			stats := e.Stats()
			if stats.Sources > 100 || stats.SourcesForgotten < 9_900 {
				t.Errorf("%d sources kept and %d forgotten, want at most 100 kept and the rest counted", stats.Sources, stats.SourcesForgotten)
			}
		})
	}
}

func TestALoweredLimitHoldsAtOnce(t *testing.T) {
	policy := trapPolicy()
	policy.Trigger, policy.MaxSources = 2, 100
	e := New(policy)
	for n := range 100 {
		p := probe("192.0.2.1:40000", "198.51.100.1:11")
		p.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(n)}), 1)
		e.Observe(p)
	}
	policy.MaxSources = 10
	e.SetPolicy(policy)
	e.Observe(probe("192.0.2.1:40000", "198.51.100.1:11"))
	if got := e.Stats().Sources; got > 10 {
		t.Errorf("%d sources kept under a limit of 10", got)
	}
}

func TestSetPolicyKeepsCounts(t *testing.T) {
	policy := trapPolicy()
	policy.Trigger = 2
	e := New(policy)
	p := probe("192.0.2.1:40000", "198.51.100.1:11")
	e.Observe(p)
	policy.TCPPorts = NewPortSet(PortRange{1, 100})
	e.SetPolicy(policy)
	if got := e.Observe(p).Event.Triggered; got != True {
		t.Errorf("second probe after a new policy: triggered %v, want true", got)
	}
}

func TestObserveAllocatesNothing(t *testing.T) {
	policy := trapPolicy()
	policy.Trigger = 1 << 30
	policy.Ignore = NewPrefixSet(netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/32"))
	policy.InUse = func(Proto, netip.AddrPort) bool { return false }
	e := New(policy)
	known := probe("192.0.2.1:40000", "198.51.100.1:11")
	e.Observe(known)
	if n := testing.AllocsPerRun(1000, func() { e.Observe(known) }); n != 0 {
		t.Errorf("Observe of a known source allocates %v times, want 0", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	for name, trigger := range map[string]int{"first probe": 0, "counting": 1 << 30} {
		b.Run(name, func(b *testing.B) {
			policy := trapPolicy()
			policy.Trigger = trigger
			policy.InUse = func(Proto, netip.AddrPort) bool { return false }
			e := New(policy)
			p := probe("192.0.2.1:40000", "198.51.100.1:11")
			b.ReportAllocs()
			for b.Loop() {
				e.Observe(p)
			}
		})
	}
}

// PortSentry 2 has a line for each packet that a service takes. Each client
// would make one, so a few a second are enough.
func TestServicesAreToldOfIfAskedFor(t *testing.T) {
	policy := trapPolicy()
	policy.InUse = func(Proto, netip.AddrPort) bool { return true }
	policy.TellServices = true
	e := New(policy)
	p := probe("192.0.2.1:40000", "198.51.100.1:11")
	reported := func(n int) (count int) {
		for range n {
			d := e.Observe(p)
			if !d.Report {
				continue
			}
			count++
			if ev := d.Event; ev.Action != ServiceReached || ev.IsProbe() || ev.Probe != p || ev.At != p.At || d.Ban != nil || d.Banner {
				t.Errorf("decision = %+v", d)
			}
		}
		return count
	}
	if got := reported(1000); got != servicesPerSecond {
		t.Errorf("%d events for 1000 packets in a second, want %d", got, servicesPerSecond)
	}
	p.At = p.At.Add(time.Second)
	if got := reported(1); got != 1 {
		t.Errorf("%d events for a packet a second later, want 1", got)
	}
	p.Target = netip.MustParseAddrPort("198.51.100.1:12")
	if got := reported(1); got != 0 {
		t.Errorf("%d events for a packet to another service, want none", got)
	}
}
