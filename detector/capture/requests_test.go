package capture

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/portsnare/portsnare/detector"
)

// udpProbe returns a datagram as decoded.
func udpProbe(from, to string, at time.Time) *detector.Probe {
	return &detector.Probe{
		At: at, Proto: detector.UDP, Technique: detector.TechniqueUDP,
		Source: netip.MustParseAddrPort(from), Target: netip.MustParseAddrPort(to),
	}
}

func TestRequests(t *testing.T) {
	const own, server = "192.0.2.2:32771", "198.51.100.53:53"
	const own6, server6 = "[2001:db8::2]:32771", "[2001:db8:1::53]:53"
	const soon = 40 * time.Millisecond
	tests := map[string]struct {
		from, to     string // the request
		toMany       bool
		source, dest string // what comes
		after        time.Duration
		want         bool
	}{
		"answer":                              {own, server, false, server, own, soon, true},
		"late answer":                         {own, server, false, server, own, requestMemory - 1, true},
		"too late":                            {own, server, false, server, own, requestMemory, false},
		"clock set back":                      {own, server, false, server, own, -time.Second, true},
		"clock set back far":                  {own, server, false, server, own, -requestMemory, false},
		"IPv6":                                {own6, server6, false, server6, own6, soon, true},
		"from another port":                   {own, server, false, "198.51.100.53:54", own, soon, false},
		"from another address":                {own, server, false, "198.51.100.54:53", own, soon, false},
		"to another port":                     {own, server, false, server, "192.0.2.2:32772", soon, false},
		"to another port of the set":          {own, server, false, server, "192.0.2.2:33027", soon, false},
		"to another address":                  {own, server, false, server, "192.0.2.3:32771", soon, false},
		"the request itself":                  {own, server, false, own, server, soon, false},
		"to many":                             {own, "192.0.2.255:137", true, "192.0.2.9:137", own, soon, true},
		"to many, to another address of ours": {own, "224.0.0.251:5353", true, "192.0.2.9:5353", "192.0.2.3:32771", soon, true},
		"to many, IPv6":                       {own6, "[ff02::fb]:5353", true, "[fe80::9]:5353", "[fe80::2]:32771", soon, true},
		"to many, from another port":          {own, "239.255.255.250:1900", true, "192.0.2.9:1901", own, soon, false},
		"to many, to another port":            {own, "239.255.255.250:1900", true, "192.0.2.9:1900", "192.0.2.2:7", soon, false},
		"to many, by the other IP version":    {own, "239.255.255.250:1900", true, "[fe80::9]:1900", "[fe80::2]:32771", soon, false},
		"to many, too late":                   {own, "192.0.2.255:137", true, "192.0.2.9:137", own, requestMemory, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var r requests
			r.sent(udpProbe(tt.from, tt.to, arrival), tt.toMany)
			if got := r.answeredBy(udpProbe(tt.source, tt.dest, arrival.Add(tt.after))); got != tt.want {
				t.Errorf("%s from %s is an answer: %v, want %v", tt.dest, tt.source, got, tt.want)
			}
		})
	}
}

// TestOnlyAnswersPass compares with a model that forgets nothing, in a world so
// small that ends often meet.
func TestOnlyAnswersPass(t *testing.T) {
	type ends struct{ local, remote netip.AddrPort }
	random := rand.New(rand.NewPCG(3, 4))
	end := func(net byte) netip.AddrPort {
		port := []uint16{7, 32771, 32771 + requestSets}[random.IntN(3)]
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, net + byte(random.IntN(2))}), port)
	}
	var r requests
	model := make(map[ends]time.Time)
	passed := 0
	now := arrival
	for range 100_000 {
		now = now.Add(time.Duration(random.Int64N(int64(requestMemory / 8))))
		e := ends{end(1), end(101)}
		if random.IntN(8) == 0 {
			model[e] = now
			r.sent(&detector.Probe{At: now, Source: e.local, Target: e.remote}, false)
			continue
		}
		sent, known := model[e]
		want := known && now.Sub(sent) < requestMemory
		if got := r.answeredBy(&detector.Probe{At: now, Source: e.remote, Target: e.local}); got != want {
			t.Fatalf("%v from %v at %v is an answer: %v, want %v", e.local, e.remote, now, got, want)
		}
		if want {
			passed++
		}
	}
	if passed == 0 {
		t.Error("no answer in 100,000 attempts")
	}
}

func TestRequestsAllocateNothing(t *testing.T) {
	var r requests
	request := udpProbe("192.0.2.2:32771", "198.51.100.53:53", arrival)
	answer := udpProbe("198.51.100.53:53", "192.0.2.2:32771", arrival)
	if got := testing.AllocsPerRun(100, func() {
		r.sent(request, false)
		r.sent(request, true)
		if !r.answeredBy(answer) {
			t.Error("not an answer")
		}
	}); got != 0 {
		t.Errorf("%v allocations, want none", got)
	}
}

func TestRequestsAreBounded(t *testing.T) {
	var r requests
	peer := func(i int) string {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 53).String()
	}
	at := func(i int) time.Time { return arrival.Add(time.Duration(i) * time.Millisecond) }
	const own, other = "192.0.2.2:32771", "192.0.2.2:32772"
	r.sent(udpProbe(other, peer(0), at(0)), false)
	for i := range requestsPerSet {
		r.sent(udpProbe(own, peer(i), at(i)), false)
	}
	r.sent(udpProbe(own, peer(0), at(100)), false) // again, so that 1 is the oldest
	r.sent(udpProbe(own, peer(200), at(101)), false)
	for i, want := range map[int]bool{0: true, 1: false, 2: true, requestsPerSet - 1: true, 200: true} {
		if got := r.answeredBy(udpProbe(peer(i), own, at(102))); got != want {
			t.Errorf("request %d is remembered: %v, want %v", i, got, want)
		}
	}
	for i := range 1000 {
		r.sent(udpProbe(own, peer(i%256), at(i)), false)
	}
	if !r.answeredBy(udpProbe(peer(0), other, at(1000))) {
		t.Error("many requests from one port drove out that of another")
	}

	before := arrival.Add(-time.Hour) // the clock is set back
	for i := range requestsPerSet {
		r.sent(udpProbe(own, peer(i), before), false)
	}
	for i := range requestsPerSet {
		if !r.answeredBy(udpProbe(peer(i), own, before)) {
			t.Errorf("request %d is forgotten after the clock was set back", i)
		}
	}
}
