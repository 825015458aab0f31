package main

import (
	"net/netip"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/parsers/conf"
)

// inUse reports whether a local service holds target.
type inUse func(proto detector.Proto, target netip.AddrPort) bool

// newPolicy returns what the engine is to follow, with the ignore files read.
func (d *daemon) newPolicy(cfg conf.Config) (detector.Policy, error) {
	ignore, warnings, err := d.loadIgnore(cfg.Detect.Ignore...)
	d.warn(warnings...)
	if err != nil {
		return detector.Policy{}, err
	}
	policy := policyOf(cfg, d.inUse(), ignore)
	policy.TellServices = d.tellServices
	return policy, nil
}

// policyOf returns the policy of a configuration.
func policyOf(cfg conf.Config, services inUse, ignore detector.PrefixSet) detector.Policy {
	policy := detector.Policy{
		TCPPorts:       cfg.Detect.TCPPorts,
		UDPPorts:       cfg.Detect.UDPPorts,
		Ignore:         ignore,
		Trigger:        cfg.Detect.Trigger,
		SkipLocalCheck: cfg.Detect.SkipLocalCheck,
		BanTCP:         bans(cfg, cfg.Ban.TCP),
		BanUDP:         bans(cfg, cfg.Ban.UDP),
	}
	if !cfg.Detect.SkipServiceCheck {
		policy.InUse = services
	}
	return policy
}

func bans(cfg conf.Config, r conf.Reaction) bool {
	return cfg.Ban.Evidence == conf.EvidenceClassic && r != conf.ReactOff
}
