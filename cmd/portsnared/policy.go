package main

import (
	"net/netip"

	"github.com/sirupsen/logrus"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/parsers/conf"
)

// inUse reports whether a local service holds target.
type inUse func(proto detector.Proto, target netip.AddrPort) bool

// newPolicy returns what the engine is to follow, with the ignore files read.
func newPolicy(cfg conf.Config, services inUse, log *logrus.Entry) (detector.Policy, error) {
	ignore, warnings, err := conf.LoadIgnore(cfg.Detect.Ignore...)
	logWarnings(log, warnings)
	if err != nil {
		return detector.Policy{}, err
	}
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
	return policy, nil
}

func bans(cfg conf.Config, r conf.Reaction) bool {
	return cfg.Ban.Evidence == conf.EvidenceClassic && r != conf.ReactOff
}
