#!/usr/bin/env bash
# User data of an EC2 instance (Debian or Ubuntu) that becomes a Carrel node: mounts the EFS, installs, joins.
# Fill in the four values, or have your template do it. The join token is good once and for an hour (CreateJoinToken), the address of a file in
# a private bucket for as long as it was signed for (aws s3 presign): a launch template for many instances fetches both for each. Ask for metadata tokens (HttpTokens=required) and a hop limit of 1,
# and add the rules that keep desks from the share's server: docs/operating.md, "What a desk can reach".
# A new share is marked once, on one of the hosts: node-agent mark-share (docs/operating.md). What it did: /var/log/cloud-init-output.log
set -euo pipefail
efs=fs-0123456789abcdef0.efs.eu-central-1.amazonaws.com
control_plane=https://carrel.internal:7301
join_token=carrel-join…
# cargo build --release --workspace --bins && git archive -o carrel.tar HEAD && tar -rf carrel.tar target/release/{control-plane,node-agent}
release=https://your-bucket.s3.eu-central-1.amazonaws.com/carrel.tar

# The first boot upgrades packages as well, and holds both locks meanwhile. For that of the lists apt-get does not wait.
export DEBIAN_FRONTEND=noninteractive
until apt-get update -q; do sleep 5; done
apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=600 ca-certificates curl nfs-common docker.io iptables
metadata=http://169.254.169.254/latest
token=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' $metadata/api/token)
zone=$(curl -sf -H "X-aws-ec2-metadata-token: $token" $metadata/meta-data/placement/availability-zone)

# hard: a soft mount can corrupt files. noresvport: reconnects get through. bg: as long as it takes, at each boot; agent and installation wait.
install -d -m 0755 /mnt/efs
grep -q ' /mnt/efs ' /etc/fstab ||
  echo "$efs:/ /mnt/efs nfs4 nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport,bg,_netdev 0 0" >>/etc/fstab
systemctl daemon-reload
systemctl start mnt-efs.mount
install -d -m 0711 -o root -g root /mnt/efs/workspace-data

install -d /opt/carrel
curl -sSf --retry 5 -o /opt/carrel/release.tar "$release"
tar -x -C /opt/carrel -f /opt/carrel/release.tar
/opt/carrel/deploy/install node --binaries /opt/carrel/target/release --control-plane "$control_plane" \
  --base /mnt/efs/workspace-data --storage mount --zone "$zone" --join-token "$join_token"
