package detector

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// An Engine turns probes into decisions. It is safe for concurrent use.
type Engine struct {
	policy atomic.Pointer[Policy]
	stats  engineStats

	mu       sync.Mutex
	sources  counter   // guarded by mu
	services allowance // guarded by mu; of events about packets for services
}

type engineStats struct {
	probes, reported, unwatched, inUse atomic.Uint64
}

// Stats are the engine's counters since it was made.
type Stats struct {
	Probes           uint64 // observed, whatever came of them
	Reported         uint64 // of these, became events
	Unwatched        uint64 // went to a port that is no trap port
	InUse            uint64 // went to a port that a local service holds
	Sources          int    // sources counted towards the trigger now
	SourcesForgotten uint64 // counts given up because the table was full
}

// New returns an engine that follows the policy p.
func New(p Policy) *Engine {
	e := new(Engine)
	e.SetPolicy(p)
	return e
}

// SetPolicy replaces the policy; what is known of sources is kept.
func (e *Engine) SetPolicy(p Policy) {
	if p.MaxSources <= 0 {
		p.MaxSources = DefaultMaxSources
	}
	e.policy.Store(&p)
}

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	known, forgotten := len(e.sources.counts), e.sources.forgotten
	e.mu.Unlock()
	return Stats{
		Probes:           e.stats.probes.Load(),
		Reported:         e.stats.reported.Load(),
		Unwatched:        e.stats.unwatched.Load(),
		InUse:            e.stats.inUse.Load(),
		Sources:          known,
		SourcesForgotten: forgotten,
	}
}

// Observe decides about one probe, in the order of PortSentry 2.0.7: watched
// port, service, ignore list, trigger, local source, ban. It blocks no
// longer than the policy's InUse, and allocates nothing itself unless a ban is
// asked for.
func (e *Engine) Observe(p Probe) Decision {
	policy := e.policy.Load()
	e.stats.probes.Add(1)
	trapped := p.Technique == TechniqueConnect
	if !trapped && !policy.watches(p.Proto, p.Target.Port()) {
		e.stats.unwatched.Add(1)
		return Decision{}
	}
	if !trapped && policy.InUse != nil && policy.InUse(p.Proto, p.Target) {
		e.stats.inUse.Add(1)
		return e.service(policy, &p)
	}

	d := Decision{Report: true}
	e.classic(policy, &p, &d)
	e.stats.reported.Add(1)
	d.Event.At = p.At
	d.Event.Probe = p
	return d
}

// servicesPerSecond bounds the events about packets for services. Their clients
// are most of them, and every client of a busy service would be one.
const servicesPerSecond = 10

// service returns the decision about a packet for a port that a service holds.
func (e *Engine) service(policy *Policy, p *Probe) Decision {
	if !policy.TellServices {
		return Decision{}
	}
	e.mu.Lock()
	allowed := e.services.take(p.At, servicesPerSecond)
	e.mu.Unlock()
	if !allowed {
		return Decision{}
	}
	return Decision{Report: true, Event: Event{Action: ServiceReached, At: p.At, Probe: *p}}
}

// An allowance lets through so many things in each second.
type allowance struct {
	second int64 // since 1970
	taken  int   // in it
}

// take reports whether one more thing is allowed at a time.
func (a *allowance) take(at time.Time, perSecond int) bool {
	if second := at.Unix(); second != a.second {
		*a = allowance{second: second}
	}
	a.taken++
	return a.taken <= perSecond
}

// classic fills in the outcome of a reportable probe as PortSentry 2.0.7 does.
func (e *Engine) classic(policy *Policy, p *Probe, d *Decision) {
	ev := &d.Event
	source := p.Source.Addr()
	switch {
	case policy.Ignore.Contains(source):
		ev.Action = ScanIgnored
		ev.Ignored = True
	case !e.triggered(policy, p):
		ev.Ignored, ev.Triggered = False, False
	case !policy.SkipLocalCheck && source == p.Target.Addr():
		ev.Action = ScanIgnored
		ev.Ignored, ev.Triggered, ev.NoBlock, ev.Blocked = True, True, True, False
	case !policy.bans(p.Proto):
		d.Banner = true
		ev.Ignored, ev.Triggered, ev.NoBlock, ev.Blocked = False, True, True, False
	default:
		d.Banner = true
		// Blocked stays False until a ban output confirms the ban.
		ev.Ignored, ev.Triggered, ev.NoBlock, ev.Blocked = False, True, False, False
		d.Ban = &Ban{
			Source:   netip.PrefixFrom(source.WithZone(""), source.BitLen()),
			Evidence: evidence(p.Proof),
			Reason:   "probe to a trap port",
			Origin:   "portsnare",
			Probe:    *p,
		}
	}
}

// triggered counts the probe and reports whether its source has reached the
// trigger. PortSentry counts packets, not ports, for ever, over both protocols.
func (e *Engine) triggered(policy *Policy, p *Probe) bool {
	if policy.Trigger <= 1 {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sources.add(p.Source.Addr(), p.At, policy.MaxSources) >= policy.Trigger
}

func evidence(p Proof) Evidence {
	if p == ProofHandshake {
		return ProvenTrap
	}
	return Forgeable
}
