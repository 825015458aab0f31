package detector

import "net/netip"

// A Policy says what the engine watches and when it reports. It is a value:
// to change one, hand the engine a new one with [Engine.SetPolicy].
type Policy struct {
	// TCPPorts and UDPPorts are the trap ports: one probe is reportable. What
	// a trap accepted (TechniqueConnect) is so on every port, because the trap
	// was told where to listen.
	TCPPorts, UDPPorts PortSet

	Ignore PrefixSet // sources that are reported as ignored and never acted on

	// Trigger is the number of probes from one source that makes a scan, as
	// PortSentry's SCAN_TRIGGER counts them. 0 and 1 both mean the first.
	Trigger int

	// MaxSources bounds the sources whose probes are counted towards Trigger.
	// Zero means DefaultMaxSources.
	MaxSources int

	// InUse reports whether a local service holds target, so that a packet
	// for it is no probe. Nil switches the check off. It is called for every
	// probe to a trap port and must neither block nor allocate, except when it
	// renews what it knows.
	InUse func(proto Proto, target netip.AddrPort) bool

	// TellServices asks for a ServiceReached event for packets that InUse holds
	// back, ten a second at the most: PortSentry 2 has a line for each.
	TellServices bool

	// SkipLocalCheck acts also on probes whose source is their own target
	// (PortSentry's -L).
	SkipLocalCheck bool

	// BanTCP and BanUDP ask for a ban at the trigger (PortSentry's BLOCK_TCP
	// and BLOCK_UDP other than 0).
	BanTCP, BanUDP bool
}

// DefaultMaxSources is how many sources are counted when a policy does not say.
const DefaultMaxSources = 100_000

// watches reports whether the policy has p's target among its trap ports.
func (p *Policy) watches(proto Proto, port uint16) bool {
	switch proto {
	case TCP:
		return p.TCPPorts.Contains(port)
	case UDP:
		return p.UDPPorts.Contains(port)
	}
	return false
}

func (p *Policy) bans(proto Proto) bool {
	return proto == TCP && p.BanTCP || proto == UDP && p.BanUDP
}
